import AVFoundation
import LightningPruneLogic
import SwiftUI

/// What the camera sees: its class in a line of text, boxes and regions drawn over it.
struct CameraScreen: View {
  @ObservedObject var program: ProgramModel
  @State private var feed: CameraFeed?

  var body: some View {
    VStack(spacing: 24) {
      ZStack {
        if let feed { Preview(session: feed.session) }
        Canvas { context, size in paint(context, size) }
      }
      .aspectRatio(program.aspect, contentMode: .fit)
      Text(program.seen).font(.title2.monospacedDigit())
    }
    .padding()
    .onAppear {
      let program = program
      let feed = feed ?? CameraFeed(
        look: { image in await program.look(image) },
        say: { text in Task { @MainActor in program.seen = text } })
      self.feed = feed
      feed.start()
    }
    .onDisappear { feed?.stop() }
  }

  private func paint(_ context: GraphicsContext, _ size: CGSize) {
    switch program.reading {
    case .boxes(let boxes):
      for box in boxes {
        let place = placed(box.area, size)
        let color = color(box.index)
        context.stroke(Path(place), with: .color(color), lineWidth: 3)
        let percent = Int((100 * box.confidence).rounded())
        let name = Text("\(box.label) \(percent) %").foregroundStyle(color)
        var shaded = context
        shaded.addFilter(.shadow(color: .black, radius: 2))  // so that it is read on a light picture too
        shaded.draw(name, at: CGPoint(x: place.minX, y: max(place.minY, 20)), anchor: .bottomLeading)
      }
    case .regions(let rows, let columns, let classes, let area):
      let place = placed(area, size)
      let wide = place.width / CGFloat(columns), tall = place.height / CGFloat(rows)
      // the first class is the background, as data sets have it
      for (cell, index) in classes.enumerated() where index > 0 {
        let x = place.minX + CGFloat(cell % columns) * wide
        let y = place.minY + CGFloat(cell / columns) * tall
        context.fill(Path(CGRect(x: x, y: y, width: wide, height: tall)), with: .color(color(index).opacity(0.5)))
      }
    default:
      break
    }
  }

  private func placed(_ area: Area, _ size: CGSize) -> CGRect {
    CGRect(
      x: CGFloat(area.left) * size.width, y: CGFloat(area.top) * size.height,
      width: CGFloat(area.right - area.left) * size.width, height: CGFloat(area.bottom - area.top) * size.height)
  }

  /// Neighbours far apart on the wheel of hues, by the golden angle.
  private func color(_ index: Int) -> Color {
    let hue = (Double(index) * 137.5).truncatingRemainder(dividingBy: 360) / 360
    return Color(hue: hue, saturation: 0.85, brightness: 0.95)
  }
}

/// The camera's picture as a view.
private struct Preview: UIViewRepresentable {
  let session: AVCaptureSession

  final class LayerView: UIView {
    override class var layerClass: AnyClass { AVCaptureVideoPreviewLayer.self }
  }

  func makeUIView(context: Context) -> LayerView {
    let view = LayerView()
    if let layer = view.layer as? AVCaptureVideoPreviewLayer {
      layer.session = session
      layer.videoGravity = .resizeAspect
    }
    return view
  }

  func updateUIView(_ view: LayerView, context: Context) {}
}
