"""AiiDA data types, DatasetData and PotentialData, and what is read off the provenance graph."""
