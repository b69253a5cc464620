-- Held images that wait for a person's decision: each shot's newest image, unless somebody decided it.
CREATE VIEW review_queue AS
SELECT r.started_at,
       rs.run,
       rs.position,
       rs.shot,
       rs.version,
       rs.row,
       rs.final,
       rs.reason,
       rs.checks,
       r.scene,
       r.channel
FROM run_shots rs
JOIN runs r ON r.id = rs.run
WHERE rs.state = 'held'
  AND rs.final IS NOT NULL
  AND rs.checks <> '{}'
  AND NOT EXISTS (SELECT FROM decisions d WHERE d.final = rs.final AND d.undone_at IS NULL)
  AND NOT EXISTS (SELECT FROM run_shots later
                  JOIN runs later_run ON later_run.id = later.run
                  WHERE later.shot = rs.shot
                    AND later.final IS NOT NULL
                    AND (later_run.started_at, later_run.id) > (r.started_at, r.id));
