"""A-LLMRec in JAX: collaborative filtering joined with a frozen large language model."""
