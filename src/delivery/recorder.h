/*
 * Recording: outcomes soon, cursors at checkpoints.
 */
#ifndef OUTBOX_RECORDER_H
#define OUTBOX_RECORDER_H

#include "datatype/timestamp.h"

/* Writes what is due. */
extern void outbox_recorder_step(TimestampTz now);

/* Writes everything now: the last words of a worker. */
extern void outbox_recorder_finish(TimestampTz now);

/* When something will be due; DT_NOEND: nothing waits. */
extern TimestampTz outbox_recorder_next(void);

/* More is done than may be repeated, or noted than may wait, and could not be recorded: nothing more must be sent. */
extern bool outbox_recorder_overdue(void);

/* A sealed segment waits for a committed head behind its seal. */
extern bool outbox_recorder_seal_waits(void);

/* Every cursor has been written to the pair of tables in use, so the other pair is not needed. */
extern bool outbox_recorder_complete(void);

#endif							/* OUTBOX_RECORDER_H */
