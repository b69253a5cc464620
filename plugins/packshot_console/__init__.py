"""The operators' page: a FastAPI app that Airflow serves below /packshot."""
