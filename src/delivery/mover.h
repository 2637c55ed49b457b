/*
 * Moving scheduled events into the log when they are due.
 */
#ifndef OUTBOX_MOVER_H
#define OUTBOX_MOVER_H

#include "datatype/timestamp.h"

/* Moves some of what is due; true if something was.  Outside a transaction; raises.  look: events may be due that nobody told of. */
extern bool outbox_mover_step(TimestampTz now, bool look);

/* A turn raised: if it was here, the next moves are careful. */
extern void outbox_mover_failed(void);

/* When there may be something to move. */
extern TimestampTz outbox_mover_next(void);

#endif							/* OUTBOX_MOVER_H */
