-- Every shot of every run, with the run that last worked on it: a run records only how it differs from the run of its
-- line before it. The row of an unchanged product is that of the feed as it was last read. Both joins for it are outer
-- ones, so that a query without the row does not make them.
CREATE VIEW shots_of_runs AS
SELECT n.id AS run,
       rs.run AS made_by,
       rs.position,
       rs.shot,
       s.sku,
       rs.version,
       CASE WHEN rs.run = n.id THEN rs.row ELSE p.row END AS row,
       rs.state,
       rs.reason,
       rs.final,
       rs.checks,
       rs.settled
FROM runs n
JOIN runs r ON r.id = n.id OR (n.line <> '' AND r.line = n.line AND r.number < n.number)
JOIN run_shots rs ON rs.run = r.id AND (rs.until IS NULL OR rs.until > n.number)
LEFT JOIN shots s ON s.id = rs.shot
LEFT JOIN products p ON p.sku = s.sku;
