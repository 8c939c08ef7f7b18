"""The page of pools and batches in Airflow's UI: its routes in the API server, and its registration as a plugin."""
