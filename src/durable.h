/*
 * Durable: waiting until what another transaction committed cannot be lost any more.
 */
#ifndef OUTBOX_DURABLE_H
#define OUTBOX_DURABLE_H

/*
 * Returns when the commit of this transaction (or subtransaction) is flushed to disk here.  It must have committed.  Costs a look into the commit log; it
 * writes only if that transaction committed asynchronously a moment ago.  What standbys have is not asked.
 */
extern void outbox_durable_wait(TransactionId xid);

#endif							/* OUTBOX_DURABLE_H */
