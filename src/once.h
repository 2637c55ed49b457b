/*
 * Once: a table in which a key is claimed by the first transaction that asks for it.
 */
#ifndef OUTBOX_ONCE_H
#define OUTBOX_ONCE_H

#include "executor/tuptable.h"
#include "utils/rel.h"

typedef struct OutboxOnce OutboxOnce;

/* A table whose only unique index is that of its key.  Closing leaves it locked (RowExclusive) until the transaction ends. */
extern OutboxOnce *outbox_once_open(Oid table);
extern void outbox_once_close(OutboxOnce *once);

/* Slots for the row that is to be, and for the one that has its key. */
extern TupleTableSlot *outbox_once_row(OutboxOnce *once);
extern TupleTableSlot *outbox_once_holder(OutboxOnce *once);

/*
 * Has somebody the key of this row (a stored virtual tuple)?  Then holder gets the row that has it, which is committed and on disk, or of this transaction (*own).  Who has the
 * key in a transaction that is still open is waited for.  Above READ COMMITTED a holder that the transaction's snapshot does not see is an error (40001).  Writes
 * nothing and needs no xid.
 */
extern bool outbox_once_find(OutboxOnce *once, TupleTableSlot *row, TupleTableSlot *holder, bool *own);

/* Inserts the row.  False, and never an error, if somebody else was faster since it was not found: then find again. */
extern bool outbox_once_insert(OutboxOnce *once, TupleTableSlot *row);

/* Takes a holder that counts no more out of the way: find again then, for somebody else may have been faster. */
extern void outbox_once_remove(OutboxOnce *once, TupleTableSlot *holder);

#endif							/* OUTBOX_ONCE_H */
