"""Where entries and the journal are kept: `memory` for one process."""
