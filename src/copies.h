/*
 * Is this server a restored copy of another one?
 */
#ifndef OUTBOX_COPIES_H
#define OUTBOX_COPIES_H

#include "nodes/pg_list.h"

/* At preload, in the postmaster: decides, and notes it durably. */
extern void outbox_copies_look(void);

/* In the postmaster of pg_upgrade: fails if there is a copy to be silenced, for the upgraded server would not know. */
extern void outbox_copies_refuse_upgrade(void);

/* Is there a copy to be silenced?  As long as this is true no delivery worker may start. */
extern bool outbox_copies_quiet(void);

/* In the lister's transaction: disarms these databases (OIDs). */
extern void outbox_copies_disarm(List *databases);

/* After that transaction's commit: the copy is silenced, `n` databases were disarmed. */
extern void outbox_copies_silenced(int n);

#endif							/* OUTBOX_COPIES_H */
