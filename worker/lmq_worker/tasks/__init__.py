"""The task types of engine work: how a payload becomes requests, and answers a result."""
