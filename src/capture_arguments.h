/*
 * The arguments of a capture's triggers: what is captured, as text in the trigger itself.
 */
#ifndef OUTBOX_CAPTURE_ARGUMENTS_H
#define OUTBOX_CAPTURE_ARGUMENTS_H

/* The C name of the trigger function, by which its triggers are known. */
#define OUTBOX_CAPTURE_SYMBOL "outbox_captured_change"

/*
 * outbox._capture(type)                                                          of the statement trigger
 * outbox._capture(type, number of key columns, name…, number of columns, name…)  of the row trigger
 *
 * "*" in place of the number of columns: all of them, no names follow.  "dropped" in place of the number of key columns: one of them is gone, no names follow.
 */
typedef struct OutboxCaptureArguments
{
	char	   *type;			/* a last word "*" stands for the operation */
	bool		row;			/* of the row trigger: what follows is set */
	bool		key_dropped;
	int			n_keys;
	char	  **keys;
	bool		all;			/* every column there is */
	int			n_columns;
	char	  **columns;
} OutboxCaptureArguments;

/* Points into args.  False if they are not what capture() writes. */
extern bool outbox_capture_arguments_parse(int n, char **args, OutboxCaptureArguments *result);

/* At preload: chains the hook that keeps the names true when columns are renamed or dropped. */
extern void outbox_capture_arguments_install(void);

#endif							/* OUTBOX_CAPTURE_ARGUMENTS_H */
