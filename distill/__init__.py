"""Distil a flow-matching text-to-image teacher into a few-step student with CDM."""
