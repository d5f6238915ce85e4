"""Reading and checking data sets, task types, and the settings of a run; all without torch."""
