/*
 * Where everybody stands: read back at start, and again when an operator changed something.
 */
#ifndef OUTBOX_RESTORE_H
#define OUTBOX_RESTORE_H

#include "datatype/timestamp.h"

#include "lane.h"

/* Reads everything back, with the first tick.  Outside a transaction. */
extern void outbox_restore_start(void);

/* Takes over changed subscriptions; notices that this database is not armed any more.  Outside a transaction. */
extern void outbox_restore_reload(void);

/* When the next secret expires: time for a reload; DT_NOEND: none does. */
extern TimestampTz outbox_restore_reload_at(void);

/* A lane has read all restored events: it goes on with this installation's. */
extern void outbox_restore_done(OutboxLane *lane);

/* Takes over the exceptions, after the ledger was written.  In a transaction with SPI connected. */
extern void outbox_restore_resync(void);

#endif							/* OUTBOX_RESTORE_H */
