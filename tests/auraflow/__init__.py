"""A third architecture, as somebody would add it: an adapter, an exporter, one registry line."""

REGISTRY_LINE = ("auraflow.adapter:AuraFlowAdapter", "auraflow.exporter:AuraFlow")
