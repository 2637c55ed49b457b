/*
 * Expiry: what the receiving side remembers is forgotten in time.
 */
#ifndef OUTBOX_EXPIRY_H
#define OUTBOX_EXPIRY_H

#include "bell.h"
#include "datatype/timestamp.h"

typedef enum OutboxExpiring
{
	OUTBOX_EXPIRING_MESSAGES,	/* accepted message ids */
	OUTBOX_EXPIRING_REQUESTS	/* idempotency keys */
} OutboxExpiring;

/*
 * Deletes rows that have expired, in the current transaction, by SPI (connected), with the rights of the current user: as many batches as
 * the budget (microseconds) allows, at least one.  Waits for nobody.  Returns the number of rows; *more: there may be others.  The caller holds the ring's lock.
 */
extern uint64 outbox_expiry_round(OutboxDatabase *database, OutboxExpiring what, TimestampTz now, int64 budget, bool *more);

/* Writes down the duplicates that accept() has counted in shared memory. */
extern void outbox_expiry_write_refusals(OutboxDatabase *database);

#endif							/* OUTBOX_EXPIRY_H */
