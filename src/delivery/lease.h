/*
 * Leases: what consumers of pull subscriptions have taken, and until when; and the answers to their calls.
 */
#ifndef OUTBOX_LEASE_H
#define OUTBOX_LEASE_H

#include "lane.h"

extern void outbox_lease_init(void);

/* Carries out settlements whose transactions have ended, ends leases that have expired, then answers calls.  True: there was nothing to do. */
extern bool outbox_lease_step(TimestampTz now);

/* When there is something to do at the latest; DT_NOEND: not before a call. */
extern TimestampTz outbox_lease_next(void);

#endif							/* OUTBOX_LEASE_H */
