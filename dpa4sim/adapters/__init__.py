"""The only place that speaks another project's vocabulary; imported lazily."""
