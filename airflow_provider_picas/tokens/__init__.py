"""The domain: tokens, their states, batches and ids. Pure functions; nothing here knows Airflow or does I/O."""
