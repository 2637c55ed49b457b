/*
 * Durable: what is answered because of another transaction must not be forgotten with it.
 *
 * A transaction with synchronous_commit = off is visible before its commit record is on disk.  Whoever answers "that was done" on its account, and acts on
 * that, would be wrong after a crash.  The commit log knows, for a while, up to where the WAL must be flushed before a status in it may be written; while
 * it does not know any more, the flush has happened.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "compat.h"
#include "durable.h"
#include "fmgr.h"
#include "storage/lwlock.h"

/*
 * The xmin of a row that was frozen long ago may be older than the commit log, or, with the counter having gone round, seem to be of the future.  The commit log is not cut
 * while we look; cutting it flushes the WAL, so what is not in it any more is durable.
 */
void
outbox_durable_wait(TransactionId xid)
{
	XLogRecPtr	lsn = InvalidXLogRecPtr;

	if (!TransactionIdIsNormal(xid) || TransactionIdIsCurrentTransactionId(xid))
		return;
	LWLockAcquire(XactTruncationLock, LW_SHARED);
	if (TransactionIdPrecedes(xid, ReadNextTransactionId()) && !TransactionIdPrecedes(xid, OutboxOldestClogXid()))
		lsn = TransactionIdGetCommitLSN(xid);
	LWLockRelease(XactTruncationLock);
	if (!XLogRecPtrIsInvalid(lsn))
		XLogFlush(lsn);
}

/* _wait_durable(xid xid) → void */
PG_FUNCTION_INFO_V1(outbox_wait_durable);
Datum
outbox_wait_durable(PG_FUNCTION_ARGS)
{
	outbox_durable_wait(DatumGetTransactionId(PG_GETARG_DATUM(0)));
	PG_RETURN_VOID();
}

/* _commit_durably() → void: this transaction commits synchronously, whatever synchronous_commit says. */
PG_FUNCTION_INFO_V1(outbox_commit_durably);
Datum
outbox_commit_durably(PG_FUNCTION_ARGS)
{
	ForceSyncCommit();
	PG_RETURN_VOID();
}
