/** A ref: what is shown takes the focus. The attribute autofocus does that only once in the life of a page, and a frame later. */
export function focused(element: HTMLElement | null): void {
    element?.focus();
}
