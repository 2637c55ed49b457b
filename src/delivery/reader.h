/*
 * Reading the log: ticks, the head, and lanes that read for themselves.
 */
#ifndef OUTBOX_READER_H
#define OUTBOX_READER_H

#include "datatype/timestamp.h"

/* Reads what there is room for, in at most one short transaction. */
extern void outbox_reader_step(TimestampTz now);

/* Lets the head's next chunk go once nothing can undo what its tick saw. */
extern void outbox_reader_confirm(void);

/* An error was raised: if it came from reading, read row by row for a while, so that a bad row is found. */
extern void outbox_reader_failed(void);

/* Is a tick due without a ring?  When is there more to do? */
extern bool outbox_reader_tick_due(TimestampTz now);
extern TimestampTz outbox_reader_next(TimestampTz now);

#endif							/* OUTBOX_READER_H */
