"""The processes that a run consists of: communicators, the launcher, failure of a rank."""
