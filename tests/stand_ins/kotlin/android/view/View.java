package android.view;

public class View {
    public View(android.content.Context context) { }
    public interface OnClickListener { void onClick(View view); }
    public static class MeasureSpec {
    public static int getSize(int spec) { return 0; } }
    public void setOnClickListener(OnClickListener listener) { }
    protected void onMeasure(int width, int height) { }
    protected final void setMeasuredDimension(int width, int height) { }
    public boolean onTouchEvent(MotionEvent event) { return false; }
    public boolean performClick() { return false; }
    protected void onDraw(android.graphics.Canvas canvas) { }
    public void invalidate() { }
    public final int getWidth() { return 1; }
    public final int getHeight() { return 1; }
    public void setEnabled(boolean enabled) { }
    public boolean isEnabled() { return true; }
    public void setFitsSystemWindows(boolean fits) { }
    public boolean getFitsSystemWindows() { return true; }
}
