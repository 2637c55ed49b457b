/*
 * Held: locks that last as long as what is written under them.
 *
 * A lock belongs to the statement that takes it, and goes to its transaction when that statement ends well.  A cursor is a statement that may fail late: what its
 * earlier rows have written stays, if the failure was in a savepoint, but their locks do not.  A lock on a segment of the log is what tells others that there is a writer, or
 * somebody who will want to read; one on another table is what REINDEX CONCURRENTLY waits for, before it trusts an index that our row is not in.  So they belong to the (sub)transaction
 * from the beginning: with that, what was written ends as well.  The server does so for sequences.
 *
 * So whoever remembers in which subtransaction a lock was taken knows, while that is the current one, that it is there, and need not ask again.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "compat.h"
#include "held.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "utils/resowner.h"

/* An error on the way ends the subtransaction, and that sets the owner. */
bool
outbox_held_lock(Oid relation, LOCKMODE mode, bool wait)
{
	ResourceOwner owner = CurrentResourceOwner;
	bool		locked = true;

	CurrentResourceOwner = CurTransactionResourceOwner;
	if (wait)
		LockRelationOid(relation, mode);
	else
		locked = ConditionalLockRelationOid(relation, mode);
	CurrentResourceOwner = owner;
	return locked;
}

Relation
outbox_held_open(Oid table)
{
	(void) outbox_held_lock(table, RowExclusiveLock, true);
	return table_open(table, NoLock);
}

void
outbox_held_unlock(Oid relation, LOCKMODE mode)
{
	ResourceOwner owner = CurrentResourceOwner;

	CurrentResourceOwner = CurTransactionResourceOwner;
	UnlockRelationOid(relation, mode);
	CurrentResourceOwner = owner;
}

void
outbox_held_note(OutboxHeld *held)
{
	held->transaction = OutboxLocalTransactionId();
	held->subtransaction = GetCurrentSubTransactionId();
}

bool
outbox_held_still(const OutboxHeld *held)
{
	return held->transaction == OutboxLocalTransactionId() && held->subtransaction == GetCurrentSubTransactionId();
}
