"""The paper's tables: task metrics of HiFi and its rivals."""
