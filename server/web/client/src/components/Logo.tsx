export function Logo() {
    return (
        <svg class="logo" viewBox="0 0 48 48" aria-hidden="true">
            <path d="M8 20v8M16 12v24M24 6v36M32 14v20M40 20v8" stroke="currentColor" stroke-width="4" stroke-linecap="round" />
        </svg>
    );
}
