"""The dashboards, as a program: ``python -m grafana.build`` writes ``grafana/dashboards/*.json``."""
