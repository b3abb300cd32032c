"""A run in small, to try all of it in a minute: what ``--dry_run`` changes."""

STEPS = 2  # of the optimizer

# Follows the command line: what begins late or rarely happens at once.
AT_ONCE = (
    *("--warmup", "0", "--language_delay", "0", "--xbm_start", "0"),
    *("--loss_s2sd_feat_distill_delay", "0"),
    *("--loss_swav_freeze_steps", "0", "--loss_swav_queue_start", "0"),
    *("--miner_parametric_every", "1", "--feedback_images", "100"),
)
