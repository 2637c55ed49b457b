/*
 * Locks on tables that last as long as what is written under them.
 */
#ifndef OUTBOX_HELD_H
#define OUTBOX_HELD_H

#include "storage/lockdefs.h"
#include "utils/relcache.h"

/* The (sub)transaction in which locks were taken; all zero for none. */
typedef struct OutboxHeld
{
	LocalTransactionId transaction;
	SubTransactionId subtransaction;
} OutboxHeld;

/*
 * Locks a table or index until the current (sub)transaction ends; waits for that, or returns false.
 */
extern bool outbox_held_lock(Oid relation, LOCKMODE mode, bool wait);

/* Opens a table that this transaction writes to: locks it so, and RowExclusive. */
extern Relation outbox_held_open(Oid table);

/* Gives a lock back. */
extern void outbox_held_unlock(Oid relation, LOCKMODE mode);

/* Locks have been taken just now, in this way … */
extern void outbox_held_note(OutboxHeld *held);

/* … and are still there: the subtransaction that took them is the current one.  In another one they may be there as well: this does not say. */
extern bool outbox_held_still(const OutboxHeld *held);

#endif							/* OUTBOX_HELD_H */
