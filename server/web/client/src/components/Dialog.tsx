import type { ComponentChildren } from "preact";
import { useId, useLayoutEffect, useRef } from "preact/hooks";

interface Props {
    title: string;
    onClose(): void;
    children: ComponentChildren;
}

/**
 * A dialog: the rest of the page is out of reach until it is closed, Escape and a press beside it close it, and the focus goes
 * back to where it was.
 */
export function Dialog({ title, onClose, children }: Props) {
    const element = useRef<HTMLDialogElement>(null);
    const heading = useId();
    useLayoutEffect(() => {
        const dialog = element.current!;
        dialog.showModal();
        return () => dialog.close();
    }, []);
    return (
        <dialog
            ref={element}
            class="dialog"
            aria-labelledby={heading}
            onCancel={(e) => {
                e.preventDefault(); // whoever shows the dialog takes it away
                onClose();
            }}
            onMouseDown={(e) => e.target === element.current && onClose()}
        >
            <div class="dialog-box">
                <h2 id={heading}>{title}</h2>
                {children}
            </div>
        </dialog>
    );
}
