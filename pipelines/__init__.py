"""packshot's product: catalogue photo in, publishable scene image out, every step recorded. Knows no Airflow."""
