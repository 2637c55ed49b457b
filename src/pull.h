/*
 * Pull: subscriptions that are drained by SQL.  The functions are SQL's; what they do to events is the delivery worker's (lease.h).
 */
#ifndef OUTBOX_PULL_H
#define OUTBOX_PULL_H

/* The hooks at the end of transactions: once, in the postmaster; every backend inherits them. */
extern void outbox_pull_install(void);

#endif							/* OUTBOX_PULL_H */
