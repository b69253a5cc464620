-- What a computed step costs, by the day (UTC) it ran, stage and device. Seconds.
CREATE VIEW seconds_by_stage AS
SELECT (created_at AT TIME ZONE 'UTC')::date AS day,
       stage,
       device,
       count(*) AS steps,
       count(*) FILTER (WHERE state = 'rejected') AS rejected,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       sum(seconds) AS seconds,
       avg(seconds) AS seconds_mean,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds) AS seconds_median,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY seconds) AS seconds_p95
FROM steps
GROUP BY 1, 2, 3;
