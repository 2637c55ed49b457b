/*
 * The bound on how much of the log a subscription holds back, and what it gives up beyond.
 */
#ifndef OUTBOX_BACKLOG_H
#define OUTBOX_BACKLOG_H

#include "datatype/timestamp.h"

/* Records that no worker ran until now.  In the transaction of a start, with SPI connected, after the first tick was taken. */
extern void outbox_backlog_started(int64 epoch);

/* Moves lanes that are past the bound.  In at most one short transaction; none if nobody holds a full segment. */
extern void outbox_backlog_step(void);

/* Writes what was given up since the last checkpoint: in the transaction that writes the cursors behind it, with SPI connected. */
extern void outbox_backlog_write(void);

/* That transaction has committed. */
extern void outbox_backlog_committed(void);

#endif							/* OUTBOX_BACKLOG_H */
