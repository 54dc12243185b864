"""Why a head says so: its logit, place by place."""
