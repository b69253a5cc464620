-- How often an image that passed every check was wrong: answers to spot checks of the last 90 days, each image counted
-- once, with the 95 % Wilson score interval of the rate (Wilson 1927). A roll-back of many images is no answer.
CREATE VIEW false_passes_by_scene AS
WITH answers AS (
    SELECT s.scene,
           count(*) FILTER (WHERE d.choice = 'reject') AS wrong,
           count(*) AS checked
    FROM spot_checks c
    JOIN decisions d ON d.final = c.final AND d.undone_at IS NULL AND d.batch = ''
    JOIN shots s ON s.id = c.shot
    WHERE d.choice IN ('confirm', 'reject') AND d.created_at > now() - interval '90 days'
    GROUP BY s.scene
), rates AS (
    SELECT scene, wrong, checked, wrong::double precision / checked AS rate FROM answers
)
SELECT scene,
       wrong,
       checked,
       rate,
       (rate + 1.96 ^ 2 / (2 * checked) - 1.96 * sqrt(rate * (1 - rate) / checked + 1.96 ^ 2 / (4.0 * checked ^ 2)))
           / (1 + 1.96 ^ 2 / checked) AS rate_low,
       (rate + 1.96 ^ 2 / (2 * checked) + 1.96 * sqrt(rate * (1 - rate) / checked + 1.96 ^ 2 / (4.0 * checked ^ 2)))
           / (1 + 1.96 ^ 2 / checked) AS rate_high
FROM rates;
