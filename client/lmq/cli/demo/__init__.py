"""`lmq demo`: the main job, for real, in under a minute.

`stage` runs the daemons, `cast` is who submits what, `score` keeps count from the events, `screen` shows it, and
`command` tells the story.
"""
