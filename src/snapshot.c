/*
 * Snapshots as values.
 *
 * Widens the 32-bit xids of a server snapshot to 64 bits and stores them as the server's own type pg_snapshot, so that
 * an operator can read a persisted tick with pg_snapshot_xip() and friends.  Nothing here looks at the commit log, at tables or at shared memory other than
 * the two counters the contract names.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "compat.h"
#include "fmgr.h"
#include "lib/qunique.h"
#include "snapshot.h"

/* The layout of type pg_snapshot, private to the server's xid8funcs.c and unchanged since version 13. */
typedef struct StoredSnapshot
{
	int32		varsize;
	uint32		nxip;
	uint64		xmin;
	uint64		xmax;
	uint64		xip[FLEXIBLE_ARRAY_MEMBER];
} StoredSnapshot;

static OutboxSnapshot *
make_snapshot(uint32 nxip)
{
	OutboxSnapshot *snapshot = palloc(offsetof(OutboxSnapshot, xip) + sizeof(uint64) * nxip);

	snapshot->nxip = nxip;
	return snapshot;
}

static int
compare_xids(const void *a, const void *b)
{
	uint64		left = *(const uint64 *) a;
	uint64		right = *(const uint64 *) b;

	return left < right ? -1 : left > right;
}

/* The 64-bit form of an xid that is older than `next`, and not by more than 2^32. */
static uint64
widen(TransactionId xid, FullTransactionId next)
{
	uint32		epoch = EpochFromFullTransactionId(next);

	if (xid > XidFromFullTransactionId(next))
		epoch--;
	return U64FromFullTransactionId(FullTransactionIdFromEpochAndXid(epoch, xid));
}

OutboxSnapshot *
outbox_snapshot_take(Snapshot mvcc, pg_atomic_uint64 *clock, bool own_xid)
{
	FullTransactionId own = GetTopFullTransactionIdIfAny();
	FullTransactionId next;
	OutboxSnapshot *snapshot = make_snapshot(mvcc->xcnt + 1);

	/* On a standby, a snapshot does not tell top-level xids from others. */
	if (mvcc->takenDuringRecovery)
		ereport(ERROR,
				(errcode(ERRCODE_READ_ONLY_SQL_TRANSACTION),
				 errmsg("cannot use a snapshot that was taken during recovery")));
	if (!own_xid && FullTransactionIdIsValid(own))
		elog(ERROR, "a tick cannot begin in a transaction that has an xid");

	/* Clock first: see the header.  Locks taken by the server between these steps keep them in order. */
	snapshot->clock = pg_atomic_read_u64(clock);
	if (snapshot->clock == 0)
		elog(ERROR, "the id clock is not established");
	next = ReadNextFullTransactionId();
	snapshot->next = U64FromFullTransactionId(next);
	snapshot->xmin = widen(mvcc->xmin, next);
	snapshot->xmax = widen(mvcc->xmax, next);

	for (uint32 i = 0; i < mvcc->xcnt; i++)
		snapshot->xip[i] = widen(mvcc->xip[i], next);
	snapshot->nxip = mvcc->xcnt;
	if (U64FromFullTransactionId(own) != 0 && U64FromFullTransactionId(own) < snapshot->xmax)
		snapshot->xip[snapshot->nxip++] = U64FromFullTransactionId(own);

	/* A transaction being prepared is listed twice for a moment. */
	qsort(snapshot->xip, snapshot->nxip, sizeof(uint64), compare_xids);
	snapshot->nxip = qunique(snapshot->xip, snapshot->nxip, sizeof(uint64), compare_xids);
	return snapshot;
}

bool
outbox_snapshot_sees(const OutboxSnapshot *snapshot, uint64 xid)
{
	if (snapshot == NULL || xid >= snapshot->xmax)
		return false;
	if (xid < snapshot->xmin)
		return true;
	return bsearch(&xid, snapshot->xip, snapshot->nxip, sizeof(uint64), compare_xids) == NULL;
}

bool
outbox_snapshot_includes(const OutboxSnapshot *later, const OutboxSnapshot *earlier)
{
	if (earlier->xmax > later->xmax)
		return false;
	for (uint32 i = 0; i < later->nxip; i++)
		if (outbox_snapshot_sees(earlier, later->xip[i]))
			return false;
	return true;
}

Datum
outbox_snapshot_to_datum(const OutboxSnapshot *snapshot)
{
	Size		size = offsetof(StoredSnapshot, xip) + sizeof(uint64) * snapshot->nxip;
	StoredSnapshot *stored = palloc0(size);

	SET_VARSIZE(stored, size);
	stored->nxip = snapshot->nxip;
	stored->xmin = snapshot->xmin;
	stored->xmax = snapshot->xmax;
	memcpy(stored->xip, snapshot->xip, sizeof(uint64) * snapshot->nxip);
	return PointerGetDatum(stored);
}

OutboxSnapshot *
outbox_snapshot_from_datum(Datum pg_snapshot, uint64 next, uint64 clock)
{
	StoredSnapshot *stored = (StoredSnapshot *) PG_DETOAST_DATUM(pg_snapshot);
	OutboxSnapshot *snapshot = make_snapshot(stored->nxip);

	snapshot->xmin = stored->xmin;
	snapshot->xmax = stored->xmax;
	snapshot->next = next;
	snapshot->clock = clock;
	memcpy(snapshot->xip, stored->xip, sizeof(uint64) * stored->nxip);
	return snapshot;
}
