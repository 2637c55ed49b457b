/*
 * Replays: events of the log that were done are delivered once more, a few at a time.
 */
#ifndef OUTBOX_REPLAY_H
#define OUTBOX_REPLAY_H

#include "datatype/timestamp.h"

/* Reads the replays that are not at their end.  In a transaction with SPI connected. */
extern void outbox_replay_load(void);

/* Where there is room, makes the next few exceptions of a replay: a short transaction each. */
extern void outbox_replay_step(TimestampTz now);

/* When there is more to do without an outcome; DT_NOEND: nothing. */
extern TimestampTz outbox_replay_next(void);

#endif							/* OUTBOX_REPLAY_H */
