/*
 * The catalog: what the extension is made of in this database.
 */
#ifndef OUTBOX_CATALOG_H
#define OUTBOX_CATALOG_H

#include "bell.h"

/* What the extension is made of in this database.  Valid until the next AcceptInvalidationMessages. */
typedef struct OutboxCatalog
{
	Oid			extension;		/* pg_extension.oid */
	Oid			schema;
	char		version[NAMEDATALEN];	/* of the script; too long a one is cut off */
	int64		epoch;			/* outbox.epoch() */
	Oid			segments[OUTBOX_SEGMENTS];
	Oid			inbox;			/* outbox.inbox */
} OutboxCatalog;

/* The extension of this database, or NULL when there is none (or only a part of it). */
extern PGDLLEXPORT const OutboxCatalog *outbox_catalog(void);

/* The same; raises when there is none. */
extern const OutboxCatalog *outbox_catalog_required(void);

#endif							/* OUTBOX_CATALOG_H */
