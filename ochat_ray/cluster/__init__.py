"""Ray clusters: connecting a job, resources, state, and a single-node Ray of one's own."""
