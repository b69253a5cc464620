"""packshot's product: catalogue photo in, publishable scene image out, every step recorded. Knows no Airflow."""

import os

from pipelines.processors import share_the_machine

os.environ |= share_the_machine()
