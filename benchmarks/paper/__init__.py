"""The paper's tables: metrics of HiFi and its rivals."""
