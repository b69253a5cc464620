-- Shots by the day (UTC) that their run started and by what became of them.
CREATE VIEW shots_by_state_and_day AS
SELECT (r.started_at AT TIME ZONE 'UTC')::date AS day,
       r.scene,
       r.channel,
       rs.state,
       count(*) AS shots
FROM run_shots rs
JOIN runs r ON r.id = rs.run
GROUP BY 1, 2, 3, 4;
