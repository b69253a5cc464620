-- Images that wait for a person's decision: held ones, and passed ones that were drawn for a spot check. Each is its
-- shot's newest image, and nobody decided it. `superseded` spares a look for a later image, and does not replace it.
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
       rs.spot,
       r.scene,
       r.channel
FROM (
    SELECT run, position, shot, version, row, final, reason, checks, false AS spot
    FROM run_shots
    WHERE state = 'held' AND final IS NOT NULL AND checks <> '{}' AND NOT superseded
    UNION ALL
    SELECT rs.run, rs.position, rs.shot, rs.version, rs.row, rs.final, 'It passed every check. Is it right?',
           ARRAY['spot_check'], true
    FROM spot_checks c JOIN run_shots rs ON rs.final = c.final
    WHERE rs.state = 'published'
) rs
JOIN runs r ON r.id = rs.run
WHERE NOT EXISTS (SELECT FROM decisions d WHERE d.final = rs.final AND d.undone_at IS NULL)
  AND NOT EXISTS (SELECT FROM run_shots later
                  JOIN runs later_run ON later_run.id = later.run
                  WHERE later.shot = rs.shot
                    AND later.final IS NOT NULL
                    AND (later_run.started_at, later_run.id) > (r.started_at, r.id));
