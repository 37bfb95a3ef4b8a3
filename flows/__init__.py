"""The verbs: each module runs one stage of dvc.yaml."""
