-- How often the image that was chosen for a shot grew its product (E+ above tau), each image counted once, with the
-- 95 % Wilson score interval of the rate (Wilson 1927).
CREATE VIEW overcompletion_by_scene_and_category AS
WITH images AS (
    SELECT DISTINCT ON (u.shot, v.key)
           sh.scene,
           pv.category,
           v.score,
           NOT v.passed AS overcompleted
    FROM run_steps u
    JOIN verdicts v ON v.key = u.key AND v."check" = 'overcompletion'
    JOIN run_shots rs ON rs.run = u.run AND rs.shot = u.shot
    JOIN product_versions pv ON pv.id = rs.version
    JOIN shots sh ON sh.id = u.shot
    WHERE u.chosen
    ORDER BY u.shot, v.key, rs.version DESC
),
rates AS (
    SELECT scene,
           category,
           count(*) AS images,
           count(*) FILTER (WHERE overcompleted) AS overcompleted,
           avg(score) AS score_mean,
           avg(overcompleted::int)::double precision AS rate
    FROM images
    GROUP BY scene, category
)
SELECT scene,
       category,
       images,
       overcompleted,
       score_mean,
       rate,
       (rate + 1.96 ^ 2 / (2 * images) - 1.96 * sqrt(rate * (1 - rate) / images + 1.96 ^ 2 / (4.0 * images ^ 2)))
           / (1 + 1.96 ^ 2 / images) AS rate_low,
       (rate + 1.96 ^ 2 / (2 * images) + 1.96 * sqrt(rate * (1 - rate) / images + 1.96 ^ 2 / (4.0 * images ^ 2)))
           / (1 + 1.96 ^ 2 / images) AS rate_high
FROM rates;
