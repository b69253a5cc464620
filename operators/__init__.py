"""Airflow operators, one class a stage: shard in, summary out. Knows no pixels."""
