/*
 * Cursors: how far each subscription is, where a restart finds it.
 */
#ifndef OUTBOX_CURSORS_H
#define OUTBOX_CURSORS_H

#include "event_log.h"
#include "tick.h"

/* A cursor read back. */
typedef struct OutboxCursor
{
	int32		subscription;	/* 0: the head */
	bool		at_head;
	uint64		base;
	uint64		upper;
	bool		partial;
	pg_uuid_t	after;
	uint64		offset;
} OutboxCursor;

/* ---- writing, in a transaction with SPI connected ---- */

/* The head is subscription 0.  position: NULL if at_head.  outbox_cursors_write() writes the rows of all that were put in this transaction. */
extern void outbox_cursors_put(int64 epoch, int32 subscription, bool at_head, const OutboxPosition *position, uint64 offset);
extern void outbox_cursors_write(const OutboxCatalog *catalog);

/* That transaction failed. */
extern void outbox_cursors_failed(void);

/* Is it time for a full state in the other pair of tables?  If so, turns to it: what follows must be every cursor. */
extern bool outbox_cursors_turn(void);

/* Empties the pair that is not in use, if it can be locked at once; and after that has committed. In a transaction of its own. */
extern bool outbox_cursors_empty_old(const OutboxCatalog *catalog);
extern void outbox_cursors_emptied(void);
extern bool outbox_cursors_has_old(void);

/* ---- reading back, in a transaction with SPI connected ---- */

/* The newest cursor of each subscription; in CurrentMemoryContext. */
extern OutboxCursor *outbox_cursors_load(int64 epoch, int *n);
extern OutboxTick *outbox_cursors_load_tick(int64 epoch, uint64 number);

/* The epoch of the newest cursors that came with a restored dump; 0: none did. */
extern int64 outbox_cursors_restored_epoch(int64 epoch);

#endif							/* OUTBOX_CURSORS_H */
