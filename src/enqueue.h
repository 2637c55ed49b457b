/*
 * Enqueue: what other rooms record, checked as if a caller had given it.
 */
#ifndef OUTBOX_ENQUEUE_H
#define OUTBOX_ENQUEUE_H

#include "utils/jsonb.h"

/* Refuses what cannot be the type of a user's event (22023). */
extern void outbox_enqueue_check_type(const text *type);

/* Records a change of a captured table, in the current transaction.  key may be NULL.  Refuses as enqueue() does; what is too large (54000) with the name of the table. */
extern void outbox_enqueue_change(const char *table, text *type, Jsonb *payload, text *key);

#endif							/* OUTBOX_ENQUEUE_H */
